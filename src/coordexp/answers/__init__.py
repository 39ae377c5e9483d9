"""The answer format: `render` writes prompts and answers, `parse` reads answers."""
