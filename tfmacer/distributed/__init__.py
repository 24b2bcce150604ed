"""A certification run as an Apache Beam pipeline: many processes or machines, one log.

An element of the pipeline is a small block of images. A worker loads the network once, certifies
its blocks and writes each as a part, by a temporary file and a rename; a part that is there is
not made again. The command that started the run reads the parts and joins them. So whatever is
lost and tried again, a bundle, a worker or the whole run, the log has each image once, and since
the noise of an image depends on its index alone, it has the rows of an undivided run.

Files of parts go through Beam's own file systems: `--parts_dir` may be a bucket.
"""

import logging

# Beam warns when it is imported without what only Google's services need.
_disabled = logging.root.manager.disable
logging.disable(logging.WARNING)
try:
    import apache_beam as apache_beam
finally:
    logging.disable(_disabled)
