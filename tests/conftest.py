"""What holds for all tests."""

from hypothesis import settings

# an example may take long because the machine is busy, which says nothing about prunekit
settings.register_profile("unhurried", deadline=None)
# for tests that run again, as other processors compute: they have been through many examples
settings.register_profile("few", deadline=None, max_examples=10)
settings.load_profile("unhurried")
