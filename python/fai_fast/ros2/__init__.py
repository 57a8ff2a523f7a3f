"""The ROS 2 node: ``python -m fai_fast.ros2 --ros-args -p model:=bisenetformer-m-ade``. See docs/ros2.md.

:mod:`fai_fast.ros2.messages` works on anything shaped like ROS 2's messages, and needs no ROS 2;
:mod:`fai_fast.ros2.node` is the node, which imports rclpy when it starts.
"""

from __future__ import annotations

__all__: list[str] = []
