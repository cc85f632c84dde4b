"""The core: the improvement loop, its gate and its strategies. No HTTP, no engine library, no database."""
