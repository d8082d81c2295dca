"""The loopback endpoint of the benchmarks as a command; see evocluster/cluster/loopback.py.

python scripts/endpoint.py --latency lognormal:1.0:10.0 --seed 7       # prints its port on the first line
"""

from __future__ import annotations

from evocluster.cluster.loopback import main

if __name__ == "__main__":
    main()
