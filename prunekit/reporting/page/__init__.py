"""`report.html`: one page about runs, which needs no other file and no network."""

from prunekit.reporting.page.document import write_page

__all__ = ["write_page"]
