"""One script per rule, named after the rule: it parses its arguments and calls the library."""
