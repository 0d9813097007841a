"""One page of HTML about one run or several: `command.py` is the command, `sections.py` makes the
content, and `page.py` writes it."""
