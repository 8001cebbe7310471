"""Which test shows which requirement of a Unity source; a test that is renamed or lost fails here."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOWN_BY = {
    "Gymnasium API, terminated apart from truncated; interrupted is truncated": [
        "unity.test_agents:test_single_agent_build_is_a_gymnasium_env",
        "unity.test_agents:test_interrupted_is_truncated_and_death_is_terminated",
        "unity.test_remote:test_gym_make_takes_the_file_name",
    ],
    "many agents: places by id, never by index, and who acts": [
        "wrappers.test_agent_order:test_every_action_reaches_the_agent_that_it_answers",
        "wrappers.test_agent_order:test_every_stream_of_training_holds_one_agent_after_the_other",
        "unity.test_remote:test_parallel_env_of_a_build",
    ],
    "respawn and varying count: a new id takes a free place; capacity is a setting": [
        "unity.test_agents:test_agents_respawn_under_new_ids_and_get_their_own_actions",
        "trainer.test_agent_streams:test_new_id_takes_a_free_stream",
        "trainer.test_agent_streams:test_more_agents_than_streams_take_those_of_the_idle",
        "trainer.test_agent_streams:test_more_agents_at_once_than_streams_name_the_setting",
    ],
    "several behaviours: spaces per behaviour": [
        "unity.test_agents:test_two_behaviours_have_spaces_of_their_own_and_more_may_appear",
        "trainer.test_many_agents:test_every_behaviour_learns_a_policy_of_its_own",
    ],
    "hybrid actions, single-branch and multi-branch, from 0": [
        "unity.test_agents:test_actions_of_every_kind_reach_their_agents",
    ],
    "action masks: True is allowed, and the policy obeys": [
        "unity.test_agents:test_masks_tell_what_is_allowed",
        "trainer.test_many_agents:test_every_behaviour_learns_a_policy_of_its_own",  # which asserts it
        "trainer.test_many_agents:test_bundle_of_several_policies_acts_by_behaviour",
    ],
    "visual and vector: Dict, uint8 option, both layouts": [
        "unity.test_agents:test_images_in_both_layouts_are_height_width_channels",
        "unity.test_agents:test_images_are_float_from_0_to_1_by_default",
    ],
    "decision timing: an agent without a request consumes no action": [
        "unity.test_agents:test_agents_decide_at_their_own_pace",
        "unity.test_agents:test_nobody_deciding_passes_in_one_call",
    ],
    "terminal and decision in one step": [
        "unity.test_agents:test_episode_that_ends_and_begins_in_one_step_tells_both_observations",
        "unity.test_remote:test_parallel_env_of_a_build",
    ],
    "group reward and id": ["unity.test_agents:test_group_rewards_are_added_or_told"],
    "seed": ["unity.test_agents:test_seed_is_the_players_own"],
    "side channels": [
        "unity.test_agents:test_side_channels_reach_the_player_and_back",
        "unity.test_remote:test_parallel_env_of_a_build",
    ],
    "ports: free, loopback": [
        "unity.test_faults:test_players_are_waited_for_on_loopback_only",
        "unity.test_faults:test_two_hosts_can_not_wait_for_one_editor",
    ],
    "environment identity per instance": ["unity.test_agents:test_two_players_are_apart"],
    "hang and crash: own watchdog, relaunch, truncated": [
        "unity.test_faults:test_player_that_ends_is_noticed_at_once_and_started_again",
        "unity.test_faults:test_crash_is_noticed_within_a_second",
        "unity.test_faults:test_player_that_hangs_is_ended_after_the_step_timeout",
        "unity.test_faults:test_close_does_not_wait_for_a_player_that_hangs",
        "unity.test_soak:test_players_that_crash_and_hang_for_half_an_hour",
    ],
    "large observations": ["unity.test_agents:test_large_observations_pass"],
    "version mismatch: both versions": ["unity.test_faults:test_version_mismatch_tells_both_versions"],
    "player log: its tail in the error": [
        "unity.test_faults:test_program_that_is_no_player_tells_what_it_said",
        "unity.test_remote:test_player_that_does_not_start_tells_the_client_why",
    ],
    "editor: port 5004": [
        "unity.test_faults:test_editor_connects_to_the_port_that_is_waited_on",
        "unity.test_remote:test_source_unity_alone_waits_for_the_editor",
    ],
    "bad input": [
        "unity.test_faults:test_paths_that_are_no_build",  # and one without execute permission
        "unity.test_faults:test_player_that_never_connects_tells_what_to_check",
        "unity.test_faults:test_behaviour_that_vanishes_is_named",
        "unity.test_faults:test_image_of_a_wrong_layout_names_it_and_ends_the_player",
        "unity.test_faults:test_wrong_options_are_named",
        "unity.test_agents:test_reset_in_the_middle_begins_new_episodes",
        "unity.test_agents:test_wrong_number_of_actions_names_who_needs_one",
        "wrappers.test_remote_parallel_env:test_wrong_actions_name_the_agent",  # a dead one too
    ],
}


@pytest.mark.parametrize("requirement", SHOWN_BY)
def test_requirement_has_its_tests(requirement: str) -> None:
    for name in SHOWN_BY[requirement]:
        module, _, function = name.partition(":")
        assert callable(getattr(importlib.import_module(f"tests.{module}"), function)), name
