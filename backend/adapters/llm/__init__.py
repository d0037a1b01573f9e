"""Model providers: one call in, one reply out, with what it cost."""
