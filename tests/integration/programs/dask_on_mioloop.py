"""What `--preload` gives a Dask process: from here on, every loop that it makes is mioloop's."""

import mioloop

mioloop.install()
