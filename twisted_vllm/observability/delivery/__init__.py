"""Delivers values to other programs: bounded queues, batches, retries, and a spool on disk.

A part of the telemetry makes a destination (`IDestination`, or `IBlockingDestination` in a `ThreadedDestination`), puts
a `DeliveryQueue` in front of it, and adds the queue to `Deliveries`, which counts. Example::

    queue = DeliveryQueue("alerts", destination, reactor, Bounds(), random)
    deliveries.add(queue)
    queue.start()
    queue.put(item, len(item))  # from any thread; never blocks and never raises
    yield queue.stop(5.0)
"""
