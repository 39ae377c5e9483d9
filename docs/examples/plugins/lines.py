"""An answer format with a line per object; see docs/architecture.md."""

import re
from collections import Counter

from coordexp.answers.formats import FORMATS, AnswerFormat
from coordexp.answers.parsed_answer import COORDINATE, STRING, ParsedAnswer, add_object


@FORMATS.register("lines")
class Lines(AnswerFormat):
    """`"bolt" <|coord_1|> <|coord_2|> <|coord_30|> <|coord_40|>`, and `end` on the last line; boxes only."""

    summary = "a line per object, with its description and its box"
    description_pattern = re.compile(rb'"((?:[^"\\]|\\.)*)', re.DOTALL)

    def between(self, previous, following):
        line = "end" if following is None else f'"{following.desc}" '
        return line if previous is None else "\n" + line

    def separator(self, kind, n):
        return " "

    def parse(self, text):
        coordinates = rf"{COORDINATE[self.style.coordinates]}(?: {COORDINATE[self.style.coordinates]})*"
        objects, problems = [], Counter()
        for line in re.finditer(rf"^({STRING}) ({coordinates})$", text, re.MULTILINE):
            spans = (line.span(), (line.start(1) + 1, line.end(1)), line.span(2))
            add_object(objects, problems, "bbox_2d", line[1], line[2], spans)
        complete = re.search(r"^end\b", text, re.MULTILINE) is not None
        problems["bad_syntax"] += len(text.splitlines()) - len(objects) - problems.total() - complete
        return ParsedAnswer(objects, dict(+problems), complete)
