"""Compare decoding strategies on the same prompts: their texts, their metrics, and their distance from human text."""
