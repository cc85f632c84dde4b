"""No deadlines on a busy machine: a law holds or does not, however long torch takes to load."""

from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
