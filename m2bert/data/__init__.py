"""Reading text, pairs and retrieval tasks, and making training examples of them.

May import m2bert.errors, m2bert.tokenization and m2ops; never the model. Tests: tests/test_data.py.
"""
