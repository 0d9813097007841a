"""A page of HTML about trained models.

`command.py` is the command, `sections.py` makes the content, and `page.py` writes the file.
"""
