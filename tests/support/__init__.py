"""Test helpers; `import support.php` works because pytest puts the directory of tests/conftest.py on the path."""
