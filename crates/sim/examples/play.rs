//! Plays one scenario: `play PATH [--text]`.
fn main() {
    let path = std::env::args().nth(1).unwrap_or_default();
    let scenario = stead_sim::scenario::open(path.as_ref()).unwrap_or_else(|e| panic!("{e}"));
    let story = stead_sim::cluster::play(&scenario).unwrap_or_else(|e| panic!("{e}"));
    if std::env::args().any(|a| a == "--text") {
        print!("{}", story.to_text());
    } else {
        println!("{}", story.to_json());
    }
}
