from rm_ray.train.interface import find_interface

ADDRESSES = {
    "lo": ["127.0.0.1", "::1"],
    "docker0": ["172.17.0.1"],
    "eth0": ["192.168.1.4", "fe80::1%eth0"],
    "ib0": ["10.1.0.4", "2001:db8::4"],
}


def test_the_interface_is_the_one_with_the_address():
    assert find_interface(ADDRESSES, "10.1.0.4") == "ib0"
    assert find_interface(ADDRESSES, "2001:db8::4") == "ib0"
    assert find_interface(ADDRESSES, "127.0.0.1") == "lo"


def test_an_address_that_is_nowhere_has_no_interface():
    assert find_interface(ADDRESSES, "10.1.0.5") is None
    assert find_interface({}, "10.1.0.4") is None
