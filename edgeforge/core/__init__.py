"""Types every other layer is built on. Imports pydantic, yaml and the standard library only."""
