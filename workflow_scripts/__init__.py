"""One script a rule, named as the rule: read the arguments, call the library, done."""
