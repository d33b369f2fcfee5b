"""Ourselves and a peer or a ceiling, in one run on one machine; ratios, never bare times."""
