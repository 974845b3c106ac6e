"What every test shares: two pytest workers on two cores, one thread each. Set before anything imports torch."
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
signal.signal(signal.SIGINT, signal.default_int_handler)   # a shell that starts us in the background lets Ctrl-C be ignored
