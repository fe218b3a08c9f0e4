"""Every attack there is a defence against, what comes of it, and the tests that show it.

Where a defence lies in the transport its tests use real hosts; where it is a decision they use a network in memory, or
the one function that decides. ``test_every_test_named_here_exists`` keeps the table true.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

ATTACKS = {
    "wrong signature": (
        "a breach of protocol: nothing is stored, the stream is reset, the relayer is charged",
        "hostile/test_bad_entries.py::test_a_wrong_signature_or_key_is_a_breach_of_protocol",
        "entries/test_envelope.py::test_flipping_any_bit_of_an_envelope_makes_it_invalid",
        "node/test_server.py::test_a_forged_signature_is_the_relayers_fault",
    ),
    "wrong key": (
        "a breach of protocol, whether it is the publisher's key or the record's",
        "hostile/test_bad_entries.py::test_an_entry_beside_the_wrong_key_is_a_breach_of_protocol",
        "entries/test_signing.py::test_a_known_payload_under_anothers_key_is_another_op_and_not_accepted",
    ),
    "wrong network": (
        "refused with the reason; a signature is worth nothing in another network",
        "hostile/test_bad_entries.py::test_what_is_not_to_be_stored_is_refused_with_a_reason_and_nobody_is_blamed",
        "entries/test_admission.py::test_an_entry_cannot_be_replayed_into_another_network",
    ),
    "expired": (
        "kept as a bare header while it is retained, then refused",
        "entries/test_admission.py::test_an_expired_entry_that_is_still_retained_is_admitted_as_a_bare_header",
        "entries/test_admission.py::test_a_retired_entry_is_refused",
    ),
    "future-dated": (
        "deferred, and nobody is blamed",
        "hostile/test_bad_entries.py::test_an_entry_dated_more_than_ten_minutes_ahead_is_deferred",
    ),
    "oversize": (
        "an entry is refused with the limit; a frame is a breach of protocol at its length, before any of it is read",
        "hostile/test_bad_entries.py::test_what_is_not_to_be_stored_is_refused_with_a_reason_and_nobody_is_blamed",
        "wire/test_frames.py::test_a_frame_of_4_mib_is_taken_and_one_of_a_byte_more_is_refused_before_any_of_it_comes",
        "net/test_rpc_server.py::test_the_large_requests_of_a_peer_have_16_mib_from_their_announcement_until_they_are_answered",
        "wire/test_kad_codec.py::test_a_frame_full_of_empty_messages_is_refused_or_cut_without_a_python_object_for_each",
    ),
    "foreign namespace": (
        "refused: a peer's own keys take its entries alone, a namespace without a validator takes none",
        "hostile/test_bad_entries.py::test_what_is_not_to_be_stored_is_refused_with_a_reason_and_nobody_is_blamed",
        "hostile/test_bad_entries.py::test_a_record_of_a_namespace_that_nobody_registered_is_refused",
        "swarm/test_slots.py::test_an_own_key_takes_its_owners_entries_alone",
    ),
    "capability missing, expired, for another peer, or forged": (
        "refused with the reason",
        "hostile/test_bad_entries.py::test_what_is_not_to_be_stored_is_refused_with_a_reason_and_nobody_is_blamed",
        "entries/test_capability.py::test_a_capability_that_does_not_cover_the_entry_is_refused",
        "hostile/test_decoders.py::test_a_capability_that_covers_nothing_once_it_was_changed",
        "swarm/test_slots.py::test_only_members_write_and_delete_under_a_groups_keys",
    ),
    "address garbage": (
        "dropped, and the peer kept",
        "hostile/test_decoders.py::test_an_address",
        "hostile/test_liars.py::test_among_liars_values_are_stored_and_found_in_a_bounded_number_of_requests",
        "net/test_address_book.py::test_no_bytes_of_a_peer_break_the_book",
        "net/test_address_book.py::test_two_thousand_addresses_leave_room_for_one_that_works",
    ),
    "closer peers that do not exist, ten thousand, one many times, or all in one region": (
        "a bounded number is asked, none gets into a table, and values are stored and found",
        "hostile/test_liars.py::test_among_liars_values_are_stored_and_found_in_a_bounded_number_of_requests",
        "kad/test_lookup.py::test_liars_who_always_know_somebody_closer_are_asked_only_so_often",
        "kad/test_lookup_doubt.py::test_who_is_known_is_asked_before_most_of_what_a_liar_invents",
        "kad/test_lookup_doubt.py::test_a_liar_holds_up_a_lookup_for_seconds_and_the_end_is_as_if_it_had_named_nobody",
        "kad/test_lookup.py::test_a_reply_cannot_fill_the_lookup_with_one_subnet_but_can_name_the_target",
        "kad/test_routing_table.py::test_at_most_two_contacts_of_a_subnet_share_a_bucket_and_three_the_table",
    ),
    "closer peers, providers or itself at this node's own addresses or its network's": (
        "not believed of a peer that is not there itself",
        "net/test_addresses.py::test_a_peer_is_believed_what_lies_no_nearer_than_itself",
        "hostile/test_liars.py::test_among_liars_values_are_stored_and_found_in_a_bounded_number_of_requests",
        "node/test_server_records.py::test_a_provider_is_not_believed_that_it_lives_on_this_nodes_own_network",
    ),
    "answers with garbage": (
        "out of the table at once, and after ten times not asked for a time that doubles",
        "hostile/test_liars.py::test_whoever_answers_with_garbage_leaves_the_table_at_once_and_is_not_asked_any_more_after_a_few_times",
        "interop/test_foreign_server.py::test_garbage_is_the_peers_fault_and_its_stream_is_reset",
    ),
    "answers never": (
        "out of the table at the deadline; lookups widen meanwhile, puts go to the next in line",
        "hostile/test_liars.py::test_among_liars_values_are_stored_and_found_in_a_bounded_number_of_requests",
        "swarm/test_failures.py::test_a_silent_replica_costs_gets_a_step_and_one_put_its_deadline",
        "interop/test_foreign_server.py::test_a_peer_that_never_answers_is_a_query_error_and_leaves_no_stream",
        "swarm/test_joining.py::test_hanging_and_empty_servers_are_not_admitted",
    ),
    "asks or answers slowly, byte by byte": (
        "a frame has ten seconds from its first byte; then its stream is reset",
        "net/test_rpc_server.py::test_a_request_that_dribbles_in_is_given_up_after_10_s",
        "net/test_streams.py::test_a_frame_that_dribbles_in_is_given_up_10_s_after_its_first_byte",
        "net/test_pipeline.py::test_an_answer_that_begins_and_does_not_end_loses_the_stream",
    ),
    "does not read its answers": (
        "gets no more of them, and loses the stream or the connection",
        "net/test_rpc_server.py::test_a_peer_that_does_not_read_its_answers_gets_no_more_of_them_and_then_loses_the_stream",
        "net/test_noise.py::test_a_peer_that_makes_us_answer_and_does_not_read_is_cut_off",
        "net/test_rpc_server.py::test_when_peers_together_leave_too_much_unread_the_one_that_stands_still_with_most_loses_its_stream",
        "net/test_unread.py::test_who_takes_a_little_of_everything_just_before_it_asks_for_more_goes_before_who_reads_slowly",
    ),
    "many identities that hold all streams, or all connections from a few addresses": (
        "a newcomer gets a place at the cost of whoever has many more",
        "net/hardening/test_stream_guard.py::test_who_has_all_streams_that_there_may_be_gives_up_its_newest_for_a_peer_that_has_few",
        "net/hardening/test_inbound.py::test_whoever_took_all_places_from_one_address_gives_one_to_a_newcomer_from_another",
        "net/hardening/test_inbound.py::test_who_began_a_handshake_first_from_where_most_did_makes_way_for_a_newcomer_from_elsewhere",
        "net/hardening/test_inbound.py::test_who_is_protected_or_has_a_stream_open_makes_no_way_while_another_from_there_can",
    ),
    "silent connections from many addresses, and ones that end after the first half of a handshake": (
        "who had its time makes way for anybody, but nobody who is in; handshakes begin at a pace",
        "net/hardening/test_inbound.py::test_silent_connections_from_as_many_addresses_as_there_are_places_keep_nobody_out_once_they_had_their_time",
        "net/hardening/test_inbound.py::test_who_only_knocks_displaces_nobody_who_is_in",
        "net/hardening/test_inbound.py::test_handshakes_begin_at_a_pace_after_a_burst_and_who_gives_up_waiting_has_taken_no_turn",
    ),
    "pings, streams opened and reset, or other frames that bring nothing, as fast as they go": (
        "is not heard for as long as they came too early; others have turns meanwhile",
        "net/test_yamux_hostile.py::test_after_a_flood_that_brings_nothing_a_peer_is_not_heard_for_as_long_as_it_came_too_early",
        "net/test_yamux_hostile.py::test_others_have_turns_while_very_many_frames_are_handled",
        "net/test_yamux_hostile.py::test_a_peer_that_opens_very_many_streams_is_not_heard_for_a_while_however_much_data_they_bring",
        "net/test_yamux_hostile.py::test_streams_that_many_connections_open_together_count_for_more",
    ),
    "large frames that are announced and stand still": (
        "their room is taken back when others wait for it, and it is bounded over all peers",
        "net/test_large_frames.py::test_a_frame_that_stands_still_gives_its_room_to_one_that_waits",
        "net/test_large_frames.py::test_large_requests_of_many_peers_have_a_bound_together_and_who_stalls_does_not_keep_others_out",
    ),
    "opens 1,000 streams": (
        "64 are served, the others reset, the peer is backed off",
        "hostile/test_running_node.py::test_of_a_thousand_streams_64_are_kept_and_the_peer_is_backed_off_while_others_are_served",
    ),
    "dials 1,000 times": (
        "256 may be half-open, 4 open by one peer; who is connected is served meanwhile",
        "hostile/test_running_node.py::test_of_a_thousand_dials_no_more_are_open_than_the_limits_say_and_who_is_connected_is_served",
        "net/hardening/test_admission.py::test_a_source_has_a_limited_number_of_connections_whatever_their_state",
    ),
    "fills an open key with 10,000 identities": (
        "4,096 get a slot, the others are refused, nobody loses one; own and group keys are out of their reach",
        "hostile/test_open_keys.py::test_ten_thousand_identities_get_the_slots_there_are_and_nobody_loses_one_to_them",
    ),
    "10,000 malformed frames and half-open streams": (
        "each stream reset and counted, nothing left behind, others served meanwhile",
        "hostile/test_running_node.py::test_ten_thousand_malformed_frames_and_half_open_streams_leave_nothing_behind",
    ),
    "offends again and again": (
        "streams reset unread for a time that doubles, in the end the connection closed; one mistake costs nothing",
        "hostile/test_running_node.py::test_whoever_offends_ten_times_has_its_streams_reset_unread_and_others_are_served",
        "hostile/test_running_node.py::test_whoever_was_backed_off_often_enough_loses_its_connection_whenever_it_comes_back",
        "net/test_offenders.py::test_a_mistake_and_its_repetition_change_nothing",
    ),
    "damages what the muxer or the cipher carries": (
        "the connection goes on or ends, and holds little",
        "hostile/test_connections.py::test_a_muxer_takes_any_frames_holds_little_and_ends_cleanly",
        "hostile/test_connections.py::test_a_session_gives_out_what_was_sealed_in_its_order_and_ends_at_the_first_byte_that_was_not",
        "net/hardening/test_inbound.py::test_ours_outlives_garbage_on_a_fresh_connection",
    ),
    "breaks a round: wrong stage, wrong order, garbage, oversize, entries nobody asked for, forgeries": (
        "the round ends at once, nothing of that message is stored, the peer is charged and left alone half an hour",
        "hostile/test_rounds.py::test_who_begins_a_round_and_breaks_it_is_charged_and_changes_nothing",
        "hostile/test_rounds.py::test_who_is_asked_for_a_round_and_breaks_it_is_charged_and_changes_nothing",
        "hostile/test_rounds.py::test_who_misbehaved_in_a_round_begins_none_for_half_an_hour_and_is_asked_for_none",
        "hostile/test_rounds_on_sockets.py::test_what_is_no_turn_ends_the_round_at_once_and_changes_nothing",
        "sync/test_hostile.py::test_a_question_that_cannot_be_asked_is_charged",
    ),
    "falls silent in a round, at any stage": (
        "50 s later the round is over and the peer charged; others go on meanwhile",
        "hostile/test_rounds.py::test_at_whatever_stage_a_peer_falls_silent_the_round_ends_and_others_go_on_meanwhile",
        "hostile/test_rounds_on_sockets.py::test_at_whatever_stage_a_peer_falls_silent_the_round_ends",
        "hostile/test_rounds.py::test_peers_that_fill_all_places_and_fall_silent_hold_up_no_round_of_the_node_or_of_others",
    ),
    "endless rounds: asks for ever, answers noise for ever, crawls byte by byte or message by message": (
        "a message has 50 s, all waits of a round a minute and a second more for each 16 KiB, ten minutes at most",
        "hostile/test_rounds.py::test_a_round_of_legal_messages_that_comes_to_no_end_is_ended_while_others_go_on",
        "hostile/test_slow_partners.py::test_beside_a_round_with_who_trickles_there_is_another_and_no_third",
        "hostile/test_rounds_on_sockets.py::test_a_turn_that_comes_byte_by_byte_is_given_up_and_changes_nothing",
        "hostile/test_rounds_on_sockets.py::test_an_opening_that_comes_byte_by_byte_is_given_up_and_its_sender_charged",
        "sync/test_hostile.py::test_answers_without_truth_come_to_an_end_and_change_nothing",
    ),
    "tells in a round of ids that it does not have": (
        "the sectors stay open, and nothing else changes",
        "hostile/test_rounds.py::test_ids_of_what_it_does_not_have_leave_the_sectors_open_and_change_nothing",
        "sync/test_hostile.py::test_symbols_of_a_set_that_cannot_be_are_a_lie",
    ),
    "begins a thousand rounds, or opens streams for rounds and begins none": (
        "16 in ten minutes are run; 4 streams of a peer are waited for, 10 s each; then the peer is left alone",
        "hostile/test_rounds.py::test_of_a_thousand_rounds_of_one_peer_sixteen_are_run_and_it_is_left_alone",
        "hostile/test_rounds.py::test_whoever_opens_a_stream_and_begins_no_round_is_charged_soon",
        "hostile/test_rounds_on_sockets.py::test_of_many_half_open_streams_of_a_peer_a_few_are_waited_for",
        "hostile/test_rounds_on_sockets.py::test_half_open_streams_of_peers_that_take_all_places_hold_up_nobody_else",
    ),
    "two nodes begin a round with each other at once": (
        "exactly one of the two goes on, and both have what either had",
        "hostile/test_rounds.py::test_of_two_rounds_that_cross_exactly_one_goes_on_and_both_have_what_either_had",
    ),
    "a put that reaches none": (
        "raises, and says why",
        "swarm/test_many.py::test_when_nobody_takes_anything_it_is_an_error",
        "swarm/test_sizes.py::test_a_lone_client_raises",
    ),
    "packet loss": (
        "replicas and retries make up for it, and the tables heal",
        "hostile/test_losses.py::test_where_messages_are_lost_puts_are_acknowledged_gets_find_and_tables_heal",
    ),
    "a suspended machine": (
        "known again minutes after it wakes, whether or not it was missed",
        "swarm/test_recovery.py::test_a_machine_that_slept_for_hours_is_back_minutes_after_it_wakes",
        "swarm/test_recovery.py::test_who_wakes_asks_its_peers_so_that_those_who_missed_it_meet_it_again",
    ),
    "a clock that jumps an hour": (
        "nothing of the node's is lost; what it puts meanwhile is refused with the reason",
        "swarm/test_recovery.py::test_a_clock_that_jumps_an_hour_and_is_set_right_again_costs_a_node_nothing",
        "swarm/test_recovery.py::test_a_put_by_a_clock_an_hour_fast_is_refused_with_the_reason_and_does_not_hold_up_its_slot",
    ),
    "an address that changes": (
        "known at the new one minutes later, or when somebody asks for it",
        "swarm/test_recovery.py::test_a_node_whose_address_changes_is_known_at_the_new_one_minutes_later",
        "swarm/test_recovery.py::test_a_node_that_nobody_can_reach_where_it_was_is_found_when_somebody_asks_for_it",
    ),
}


def names_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


@pytest.mark.parametrize(("_outcome", "shown_by"), [(row[0], row[1:]) for row in ATTACKS.values()], ids=ATTACKS)
def test_every_test_named_here_exists(_outcome: str, shown_by: tuple[str, ...]) -> None:
    assert shown_by
    for name in shown_by:
        file, _, test = name.partition("::")
        assert test in names_in(TESTS / file)
