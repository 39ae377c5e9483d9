"""Boxes, polygons, image sizes and the norm1000 codec. Pure numpy and shapely, no files."""
