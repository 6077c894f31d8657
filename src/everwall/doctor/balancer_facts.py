"""What AWS says of a target group, its listener and its load balancer.

``client`` is boto3's ``elbv2`` client, or whatever answers the same six calls. boto3 is imported only when a
client is asked for: it comes with the extra ``aws``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any


class BalancerError(Exception):
    """AWS cannot be asked, or does not answer; one line says why."""


@dataclass(frozen=True)
class BalancerFacts:
    """Everything about a target group."""

    group: Mapping[str, Any]
    """As in describe_target_groups: protocol, port, health check."""
    attributes: Mapping[str, str]
    targets: tuple[tuple[str, str], ...] = ()
    """State and zone of each target; the zone is empty where AWS does not name it."""
    balancer_attributes: Mapping[str, str] = field(default_factory=dict)
    listener_attributes: Mapping[str, str] = field(default_factory=dict)
    attached: bool = False
    """A load balancer sends to this group."""


def client(arn: str) -> Any:
    """A client for the region of ``arn``. Raises BalancerError when boto3 is missing or the ARN is none."""
    parts = arn.split(":")
    if len(parts) != 6 or parts[2] != "elasticloadbalancing" or not parts[5].startswith("targetgroup/"):
        raise BalancerError(
            f"{arn!r} is no target group: expected arn:aws:elasticloadbalancing:REGION:ACCOUNT:targetgroup/..."
        )
    try:
        boto3: Any = import_module("boto3")
    except ImportError:
        raise BalancerError("boto3 is not installed: pip install 'everwall[aws]'") from None
    return boto3.client("elbv2", region_name=parts[3])


def collect(elbv2: Any, arn: str) -> BalancerFacts:
    """All facts about the target group ``arn``. Raises BalancerError with AWS's reason."""
    try:
        return _collect(elbv2, arn)
    except (KeyError, IndexError, TypeError) as error:
        raise BalancerError(f"AWS answered something unexpected: {error!r}") from error
    except Exception as error:
        # boto3's errors have no common ancestor but this, and are known only where it is installed.
        raise BalancerError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def _collect(elbv2: Any, arn: str) -> BalancerFacts:
    group = elbv2.describe_target_groups(TargetGroupArns=[arn])["TargetGroups"][0]
    attributes = _attributes(elbv2.describe_target_group_attributes(TargetGroupArn=arn))
    health = elbv2.describe_target_health(TargetGroupArn=arn)["TargetHealthDescriptions"]
    targets = tuple(
        (one["TargetHealth"]["State"], one["Target"].get("AvailabilityZone", "")) for one in health
    )
    facts = BalancerFacts(group, attributes, targets)
    if not group.get("LoadBalancerArns"):
        return facts
    balancer = group["LoadBalancerArns"][0]
    of_balancer = _attributes(elbv2.describe_load_balancer_attributes(LoadBalancerArn=balancer))
    of_listener: dict[str, str] = {}
    for listener in elbv2.describe_listeners(LoadBalancerArn=balancer)["Listeners"]:
        if any(arn in _groups(action) for action in listener.get("DefaultActions", [])):
            found = elbv2.describe_listener_attributes(ListenerArn=listener["ListenerArn"])
            of_listener |= _attributes(found)
    return BalancerFacts(group, attributes, targets, of_balancer, of_listener, attached=True)


def _attributes(answer: Mapping[str, Any]) -> dict[str, str]:
    return {one["Key"]: one["Value"] for one in answer["Attributes"]}


def _groups(action: Mapping[str, Any]) -> set[str]:
    """The target groups that an action forwards to."""
    named = {action["TargetGroupArn"]} if "TargetGroupArn" in action else set()
    return named | {one["TargetGroupArn"] for one in action.get("ForwardConfig", {}).get("TargetGroups", [])}
