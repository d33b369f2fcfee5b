"""Which version of Lyceum this is."""

VERSION = "0.1.0"
