"""The grammar of answers: a byte automaton of the JSON format, compiled to the tokens of a tokenizer."""
