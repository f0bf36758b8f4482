"""The packages here are installed and tested elsewhere: by test_plugin_proof.py."""

collect_ignore_glob = ["*/test_*.py"]
