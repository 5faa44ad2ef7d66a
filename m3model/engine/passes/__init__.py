"""One pass of the language model over tokens of many requests, packed end to end."""
