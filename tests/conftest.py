"""What holds for all tests."""

from hypothesis import settings

# an example may take long because the machine is busy, which says nothing about prunekit
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
