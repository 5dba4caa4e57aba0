"""The one place of the project's version."""

VERSION = "0.4.0"
