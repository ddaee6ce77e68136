"""What these tests need is in the extra `gan`; without it they are left out."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("spandrel") and find_spec("torchvision") else ["test_*.py"]
