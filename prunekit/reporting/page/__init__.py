"""`report.html`: runs as one page that needs nothing but itself."""

from prunekit.reporting.page.document import write_page

__all__ = ["write_page"]
