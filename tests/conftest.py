"What every test shares: two pytest workers on two cores, one thread each. Set before anything imports torch."
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
