"""How the peers are measured, and how they tell."""
import importlib.metadata
import json
import time


def timed(step, runs):
    """What `step` gives after it was warm, and the seconds of each run."""
    result, times = step(), []
    for _ in range(runs):
        began = time.perf_counter()
        result = step()
        times.append(time.perf_counter() - began)
    return result, times


def memory_kib(name):
    """A line of /proc/self/status: VmRSS is what is held now, VmHWM the most so far."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))


def forget_peak():
    """Makes the most so far what is held now."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def tell(**figures):
    """One line of JSON on standard output, with the versions of what made it."""
    names = ("torch", "diffusers", "transformers", "openvino")
    figures["versions"] = {name: importlib.metadata.version(name) for name in names}
    print(json.dumps(figures), flush=True)
