"""Boxes, polygons, image sizes and the norm1000 codec, in numpy and shapely; no file access."""
