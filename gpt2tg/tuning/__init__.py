"""Search for decoding settings whose texts are closest to human text, and check them on held-out text."""
