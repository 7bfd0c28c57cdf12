"""aaft: fine-tune a language model on your own data without losing its alignment."""

__version__ = "0.1.0"
