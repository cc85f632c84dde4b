"""The web page: templates and static files, and what makes responses of them."""
