"""credentials owns what a Credentials server must learn: certificates, grades, program awards.

A *notification* is one fact it must be told; a *delivery* is one attempt to tell it, kept in the
delivery log whatever came of it.
"""
