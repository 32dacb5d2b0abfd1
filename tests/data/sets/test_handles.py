"""What is opened by one process is not what another one uses."""

import multiprocessing
import os
import pickle

import pytest

from ssl_toolkit.data.sets.handles import PerProcess


def _put(handle, queue):
    queue.put((handle.get(), os.getpid()))


@pytest.mark.parametrize("forks", [False, True])
def test_a_fork_opens_its_own(forks):
    handle = PerProcess(os.getpid, forks=forks)
    assert handle.get() == os.getpid()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_put, args=(handle, queue))
    child.start()
    opened_by, reader = queue.get(timeout=60)
    child.join()
    assert reader != os.getpid()
    assert opened_by == (os.getpid() if forks else reader)


@pytest.mark.parametrize("forks", [False, True])
def test_it_is_opened_once_and_never_pickled(forks):
    opened = []
    handle = PerProcess(lambda: opened.append(1) or object(), forks=forks)
    assert handle.get() is handle.get()
    assert len(opened) == 1
    copy = pickle.loads(pickle.dumps(PerProcess(object, forks=forks)))
    first = PerProcess(object, forks=forks)
    first.get()
    assert pickle.loads(pickle.dumps(first))._value is None
    assert isinstance(copy.get(), object)
