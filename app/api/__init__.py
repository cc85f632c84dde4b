"""HTTP routers. They parse, call one function of the core, and render."""
