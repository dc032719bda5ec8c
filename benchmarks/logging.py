"""What do logs cost? The door to ``logs.py``: ``python benchmarks/logging.py``.

Python looks for modules beside the script first, so that every benchmark's ``import logging`` ends here; what it means is the
standard library's, which takes this module's place then.
"""

import sys
import sysconfig
from importlib.util import module_from_spec, spec_from_file_location

if __name__ == "__main__":
    from logs import main

    main()
else:
    package = f"{sysconfig.get_path('stdlib')}/logging"
    spec = spec_from_file_location("logging", f"{package}/__init__.py", submodule_search_locations=[package])
    assert spec and spec.loader
    sys.modules[__name__] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[__name__])
