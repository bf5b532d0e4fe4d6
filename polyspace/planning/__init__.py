"""Planning: action sequences by search over any callable cost, and a simulator to try them in."""
