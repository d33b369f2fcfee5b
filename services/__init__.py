"""The five services. They never read each other's tables."""
