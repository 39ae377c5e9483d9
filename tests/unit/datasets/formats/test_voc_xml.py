"""XML files are read without document types and entities; every error has its line."""

import pytest
from folder_cases import voc_object, voc_xml, write

from coordexp.datasets.formats.reading import BadItem
from coordexp.datasets.formats.voc_xml import read_voc_file

LAUGHS = (
    '<?xml version="1.0"?>\n<!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>\n<annotation>&b;</annotation>'
)
EXTERNAL = '<!DOCTYPE a [\n<!ENTITY x SYSTEM "file:///etc/passwd">]>\n<annotation><filename>&x;</filename></annotation>'


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        (LAUGHS, "XML with a document type declaration", 2),
        (EXTERNAL, "XML with a document type declaration", 1),
        (
            '<!DOCTYPE annotation SYSTEM "http://example.com/voc.dtd">\n<annotation/>',
            "XML with a document type declaration",
            1,
        ),
        ("<annotation>\n<filename>a&x;</filename></annotation>", "not XML", 2),
        ("<annotation>\n<object>\n</annotation>", "not XML", 3),
        ("<svg>\n</svg>", "not a VOC annotation", 1),
        (b"<annotation>\n<filename>\xe4</filename></annotation>", "not XML", 2),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "unknown encoding", 1),
        ("", "empty file", None),
        ("image,label\na.jpg,cat\n", "not XML", 1),
    ],
)
def test_what_is_refused(tmp_path, text, reason, line):
    with pytest.raises(BadItem) as error:
        read_voc_file(write(tmp_path / "a.xml", text))
    assert (error.value.reason, error.value.line) == (reason, line)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_declared_encodings_are_read(tmp_path, encoding):
    text = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>\n' + voc_xml("köln.jpg", (3, 4))
    file = read_voc_file(write(tmp_path / "a.xml", text.encode(encoding)))
    assert file.texts["filename"] == "köln.jpg" and file.size() == (3, 4)


def test_parts_of_objects_are_not_objects(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>7</xmin></bndbox></part></object>"
    text = voc_xml("a.jpg", (9, 9), voc_object("person", (1, 2, 3, 4)).replace("</object>", part))
    [item] = read_voc_file(write(tmp_path / "a.xml", text)).objects
    assert item.texts["name"] == "person" and item.corners() == ["1", "2", "3", "4"] and item.line == 4


@pytest.mark.parametrize("size", ["-1", "3.5", "99999999", "x"])
def test_an_invalid_size_is_refused(tmp_path, size):
    file = read_voc_file(write(tmp_path / "a.xml", voc_xml("a.jpg", (size, 9))))
    with pytest.raises(BadItem, match="invalid size"):
        file.size()
