"""A conversation becomes inputs. `processor.py` is the only way in."""
