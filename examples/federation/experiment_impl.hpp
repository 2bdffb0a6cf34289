// SPDX-License-Identifier: Apache-2.0
// run_experiment, for the translation units that instantiate it.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "command_line.hpp"
#include "federation/experiment.hpp"
#include "federation/plan_export.hpp"
#include "federation/report.hpp"
#include "federation/run.hpp"
#include "fedlora/lora/classifier.hpp"

namespace fedlora::examples {

template <class Arch, class B>
class Experiment {
 public:
  using Model = SequenceClassifier<Arch, B>;
  using T = typename Model::Scalar;

  Experiment(Pretrained<Arch, B> base, const std::string& machine, Assignment& assignment)
      : machine_(machine),
        options_(assignment.options),
        inputs_(assignment.inputs),
        out_(assignment.out),
        model_(base, classifier_options(), inputs_.lora),
        head_model_(std::move(base), classifier_options(), head_only(inputs_.lora)),
        train_(std::make_shared<const Dataset>(model_.encode(inputs_.train, options_.threads))),
        test_(std::make_shared<const Dataset>(model_.encode(inputs_.test, options_.threads))) {}

  int run() {
    const auto started = std::chrono::steady_clock::now();
    console_.print(
        introduction(machine_, options_, inputs_, model_, options_.runs("head") ? &head_model_ : nullptr, *train_));
    if (out_.holds_run() && options_.overwrite)
      console_.note("note: the earlier run in " + options_.out + " is replaced when the first round is done");
    if (!out_.holds_run() && options_.resume)
      console_.note("note: nothing was saved in " + options_.out + " to go on with; this is a new run");
    for (const std::string& mode : mode_order)
      if (options_.runs(mode)) prepare(mode);
    Index steps = 0;
    std::map<std::string, std::vector<Json>> rows;
    for (const auto& run : runs_) {
      rows[run.mode] = run.state.metrics;
      steps += run.steps_left();
    }
    if (options_.resume && out_.holds_run()) out_.write_rows(rows);
    console_.expect(steps);
    train_all();
    console_.finish();
    if (Interrupt::requested()) {
      console_.note(out_.saved_round() || (options_.resume && out_.holds_run())
                        ? "\ninterrupted; saved up to the last whole round in " + options_.out + ". To go on:\n  " +
                              options_.resume_command
                        : "\ninterrupted before the first round was done; nothing was saved");
      return 130;
    }
    finish(std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count());
    return 0;
  }

 private:
  ClassifierOptions classifier_options() const {
    const std::optional<Pooling> pooling = options_.pooling == "family" ? Arch::pooling : inputs_.pooling;
    return {.labels = inputs_.labels,
            .pooling = pooling,
            .max_tokens = inputs_.max_tokens,
            .base_dropout = options_.base_dropout,
            .problem_type = inputs_.problem_type,
            .text_pairs = !inputs_.train.text_pair.empty()};
  }

  static LoraConfig head_only(LoraConfig lora) {
    lora.head_only = true;
    return lora;
  }

  /// Sets a run up: at its start, or where its saved state left it.
  void prepare(const std::string& mode) {
    Run<Model>& run = runs_.emplace_back();
    const bool federated = mode == "federated", local = mode == "local", head = mode == "head";
    run.mode = mode;
    run.measures = &inputs_.measures;
    run.model = head ? &head_model_ : &model_;
    run.test = test_;
    run.rounds = federated ? options_.rounds : options_.reference_epochs;
    run.eval_every = options_.eval_every;
    run.own_adapters = local;
    run.cohort = federated ? options_.cohort : 1.0;
    run.plan.epochs = federated ? options_.local_epochs : 1;
    run.plan.steps = options_.local_steps;
    run.plan.batch_size = options_.batch;
    run.plan.schedule.shape = schedule_shape(options_.lr_schedule);
    run.plan.rounds = run.rounds;
    run.plan.mu = federated && options_.method == "fedprox" ? options_.mu : 0.0;
    run.plan.keep_optimizer_state = !federated;
    Partition everything(1);
    for (Index i = 0; i < train_->size(); ++i) everything[0].push_back(i);
    run.clients =
        make_clients(*run.model, train_, federated || local ? inputs_.partition : everything,
                     AdamW{.lr = head ? options_.head_lr : options_.lr, .weight_decay = options_.weight_decay});

    if (head && run.plan.steps == 0)  // else few of the texts may be trained on
      run.before_rounds = [this, &run](int threads, const std::function<void()>& check) {
        const auto data = std::make_shared<const Dataset>(head_model_.with_pooled(*train_, threads, check));
        for (auto& client : run.clients) client.data = data;
        run.test = std::make_shared<const Dataset>(head_model_.with_pooled(*test_, threads, check));
      };

    std::vector<std::string> notes;
    const Adapter<T> initial = !options_.adapter.empty() && !head
                                   ? load_peft<T>(std::filesystem::path(options_.adapter), run.model->layout(), &notes)
                                   : run.model->initial_adapter(options_.seed);
    for (const std::string& note : notes)
      if (told_.insert(note).second) console_.note(note_line(note));
    run.state.config = inputs_.config;
    run.state.seed = options_.seed;
    run.state.adapters.assign(local ? run.clients.size() : 1, initial);
    if (const auto saved = out_.saved_state(mode)) resume(run, *saved);
    run.state.extra["arguments"] = options_.arguments;
    if (federated && !options_.export_plan.empty())
      export_plan(run, options_.export_plan, inputs_.config, *train_, *test_, initial);
  }

  void resume(Run<Model>& run, const Bytes& saved) {
    auto state = parse_run_state<T>(saved, run.model->layout());
    if (state.round > run.rounds)
      fail<ConfigError>("resume, field " + std::string(run.mode == "federated" ? "rounds" : "reference_epochs"),
                        "at least the " + std::to_string(state.round) + " that the saved " + run.mode + " run has done",
                        std::to_string(run.rounds));
    if (state.adapters.size() != run.state.adapters.size() ||
        state.metrics.size() != static_cast<std::size_t>(state.round))
      fail<FormatError>(saved.name, "a state of this run", "another number of adapters or rows");
    state.config = run.state.config;
    run.state = std::move(state);
    if (inputs_.measures.positive_label.empty())  // so that no later run adds F1 of another label to these
      for (Json& row : run.state.metrics) row.erase("f1");
    if (options_.lr_schedule != "constant" && run.state.round > 0 && !run.finished() &&
        read_saved_run(saved).config["rounds"] != inputs_.config["rounds"])
      console_.note("note: learning rates follow the new number of rounds from here on");
    console_.note(
        run.mode + ": " +
        (run.finished() ? "finished before" : "goes on after " + run.unit() + " " + std::to_string(run.state.round)));
  }

  /// Two threads or more: the runs with a single client, which use one, go beside the others; these take what is left,
  /// and all of it once they are alone. Results do not depend on any of this.
  void train_all() {
    std::atomic<bool> stop{false}, beside{false};
    const auto cancelled = [&] { return stop || Interrupt::requested(); };
    const auto advance_those = [&](bool single, const std::function<int()>& threads) {
      for (auto& run : runs_)
        if ((run.clients.size() == 1) == single) advance(run, {console_, out_, threads, cancelled});
    };
    std::exception_ptr first;
    std::mutex mutex;
    const auto guarded = [&](const auto& work) {
      try {
        work();
      } catch (const Cancelled&) {
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
        stop = true;
      }
    };
    const auto one = [] { return 1; };
    const auto rest = [&] { return beside ? options_.threads - 1 : options_.threads; };
    {
      std::jthread other;
      if (options_.threads > 1) {
        beside = true;
        other = std::jthread([&] {
          guarded([&] { advance_those(true, one); });
          beside = false;
        });
      } else {
        guarded([&] { advance_those(true, one); });
      }
      guarded([&] { advance_those(false, rest); });
    }
    console_.finish();
    if (first) std::rethrow_exception(first);
  }

  /// The final table and summary.json; and the adapters, of which a killed run may have left older ones.
  void finish(double seconds) {
    Json summary = {{"config", inputs_.config}};
    std::string adapters;
    for (const auto& run : runs_) {
      summary[run.mode] = summary_of(run);
      if (const auto directory = out_.adapter(run.mode)) {
        save_peft(run.state.adapters[0], *directory);
        adapters += directory->filename().string() + "/, ";
      }
    }
    if (!adapters.empty() && model_.pooling() != Arch::pooling)
      console_.note(
          "note: pooling " + std::string(pooling_name(model_.pooling())) +
          " is kept in the metadata of the adapter's file, where fedlora-predict and fedlora-merge read it; PEFT "
          "has no field for it, and pools as the family does");
    out_.write_summary(summary);
    console_.print("\n" + result_table(summary, inputs_.measures) + "\n" + decimals(seconds, 1) + " seconds in all" +
                   (runs_.size() > 1 ? "; the runs share the threads, so theirs overlap" : "") + ". Written to " +
                   out_.path().string() + ": summary.json, metrics.csv, metrics.jsonl, " + adapters +
                   "state/ (for --resume)\n");
  }

  const std::string& machine_;
  const Options& options_;
  const Inputs& inputs_;
  OutputDirectory& out_;
  Console console_;
  Model model_, head_model_;
  std::shared_ptr<const Dataset> train_, test_;
  std::list<Run<Model>> runs_;
  std::set<std::string> told_;  ///< notes that were printed
};

template <class Arch, class B>
int run_experiment(Pretrained<Arch, B> base, const std::string& machine, Assignment& assignment) {
  return Experiment<Arch, B>(std::move(base), machine, assignment).run();
}

}  // namespace fedlora::examples
