"""The use cases, each a part that a studio holds; none imports a heavy library."""
