use super::*;
use crate::placement::{info::Details, source::Endpoint};
use sdxl_core::VaeInfo;
use sdxl_proto::v1::DType;

fn info(revision: &str) -> StageInfo {
    StageInfo {
        stage: StageKind::Vae,
        model: "m".into(),
        revision: revision.into(),
        device: "cpu".into(),
        dtype: DType::F32,
        details: Details::Vae(VaeInfo { latent_channels: 4, vae_scale_factor: 8 }),
    }
}

/// A fleet whose replicas' health the test decides.
fn fleet(count: usize) -> (Shared, Vec<Arc<Replica>>) {
    fleet_in(count, None)
}

/// The same, of a coordinator in a zone.
fn fleet_in(count: usize, zone: Option<&str>) -> (Shared, Vec<Arc<Replica>>) {
    let shared = Shared::new(StageKind::Vae, zone.map(str::to_owned));
    let replicas: Vec<_> = (1..=count)
        .map(|i| {
            // Every third is in the coordinator's zone.
            let zone = Some(if i % 3 == 1 { "a" } else { "b" }.to_owned());
            let address = format!("127.0.0.1:{i}").parse().unwrap();
            Arc::new(Replica::new(Endpoint { address, zone }, Duration::from_secs(1), None).unwrap())
        })
        .collect();
    for replica in &replicas {
        shared.join(Arc::clone(replica));
    }
    (shared, replicas)
}

fn picked(lease: &Lease) -> String {
    lease.replica().address().to_string()
}

#[tokio::test]
async fn work_goes_to_the_least_loaded_and_equals_take_turns() {
    let (shared, replicas) = fleet(3);
    assert!(shared.pick(1, &[]).is_none(), "none is up yet");
    for replica in &replicas {
        shared.up(replica, info("r"));
    }
    let large = shared.pick(100, &[]).unwrap();
    let small = shared.pick(10, &[]).unwrap();
    let third = shared.pick(50, &[]).unwrap();
    assert_eq!(
        [picked(&large), picked(&small), picked(&third)],
        ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]
    );
    let next = shared.pick(10, &[]).unwrap();
    assert_eq!(picked(&next), "127.0.0.1:2", "10 is least");
    drop(large);
    assert_eq!(picked(&shared.pick(1, &[]).unwrap()), "127.0.0.1:1", "its work was given back");

    drop((small, third, next));
    let turns: Vec<_> = (0..6).map(|_| picked(&shared.pick(1, &[]).unwrap())).collect();
    assert_eq!(turns[..3], turns[3..], "an idle fleet is used in rotation: {turns:?}");
    assert!(turns[0] != turns[1] && turns[1] != turns[2] && turns[0] != turns[2]);
}

#[tokio::test]
async fn a_replica_that_was_tried_is_not_picked_again() {
    let (shared, replicas) = fleet(2);
    for replica in &replicas {
        shared.up(replica, info("r"));
    }
    let tried = [Arc::clone(&replicas[0])];
    for _ in 0..4 {
        assert_eq!(picked(&shared.pick(1, &tried).unwrap()), "127.0.0.1:2");
    }
    assert!(shared.pick(1, &replicas).is_none());
}

#[tokio::test]
async fn another_revision_waits_until_the_first_is_gone() {
    let (shared, replicas) = fleet(3);
    let status = shared.status.subscribe();
    shared.up(&replicas[1], info("old"));
    shared.up(&replicas[0], info("new"));
    shared.up(&replicas[2], info("old"));
    assert_eq!(status.borrow().ready, 2);
    for _ in 0..4 {
        assert_ne!(picked(&shared.pick(1, &[]).unwrap()), "127.0.0.1:1");
    }
    assert_eq!(
        shared.lock().list[0].complaint.as_deref(),
        Some("it serves revision new in D_TYPE_F32, the others of its stage old in D_TYPE_F32")
    );
    shared.down(&replicas[1], "test");
    shared.down(&replicas[2], "test");
    assert_eq!(status.borrow().ready, 1);
    assert_eq!(status.borrow().info.as_ref().unwrap().revision, "new");
    assert_eq!(picked(&shared.pick(1, &[]).unwrap()), "127.0.0.1:1");
    assert_eq!(shared.lock().list[0].complaint, None);
}

#[tokio::test]
async fn what_was_served_is_remembered_when_all_are_lost() {
    let (shared, replicas) = fleet(1);
    let status = shared.status.subscribe();
    shared.up(&replicas[0], info("r"));
    shared.down(&replicas[0], "test");
    assert_eq!((status.borrow().ready, status.borrow().info.is_some()), (0, true));
    assert!(shared.pick(1, &[]).is_none());
    shared.up(&replicas[0], info("r"));
    shared.leave(replicas[0].address());
    assert_eq!(status.borrow().ready, 0);
}

#[tokio::test]
async fn the_own_zone_is_preferred_until_it_is_busier() {
    for count in [3, 60] {
        let (shared, replicas) = fleet_in(count, Some("a"));
        for replica in &replicas {
            shared.up(replica, info("r"));
        }
        let here = replicas.iter().filter(|replica| replica.zone() == Some("a")).count();
        let mut leases: Vec<_> = (0..here / 2 + 1).map(|_| shared.pick(100, &[]).unwrap()).collect();
        let far = |lease: &Lease| lease.replica().zone() != Some("a");
        assert_eq!(leases.iter().filter(|lease| far(lease)).count(), 0, "of {count}");
        leases.extend((0..2 * here).map(|_| shared.pick(100, &[]).unwrap()));
        assert!(leases.iter().any(far), "of {count}");
    }
}

#[tokio::test]
async fn the_source_decides_who_is_in() {
    let at = |port: u16| Endpoint::from(Address::of("127.0.0.1", port).unwrap());
    let (sender, receiver) = watch::channel(vec![at(1)]);
    let near = Near { connect_timeout: Duration::from_millis(100), ..Near::default() };
    let fleet = Fleet::start(StageKind::Vae, Source::Watch(receiver), None, near);
    let members = || {
        let members = fleet.shared.lock();
        members.list.iter().map(|m| m.replica.address().to_string()).collect::<Vec<_>>()
    };
    let becomes = async |expected: &[&str]| {
        for _ in 0..200 {
            if members() == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{:?} is not {expected:?}", members());
    };
    becomes(&["127.0.0.1:1"]).await;
    sender.send(vec![at(2), at(1)]).unwrap();
    becomes(&["127.0.0.1:1", "127.0.0.1:2"]).await;
    sender.send(vec![at(2)]).unwrap();
    becomes(&["127.0.0.1:2"]).await;
}
