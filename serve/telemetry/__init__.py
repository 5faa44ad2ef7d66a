"""What an operator sees besides metrics: spans of a request's work, and lines of the log.

`spans` exports traces where one is configured, `answering` times an answer, `logs` writes lines.
"""
