// In a gr.HTML whose value is what `report_data` returns: shows it in a <gradellm-report>, anew whenever it changes.
const show = () => {
  if (!props.value) {
    element.textContent = props.empty;
    return;
  }
  const report = document.createElement("gradellm-report"), data = document.createElement("script");
  data.type = "application/json";
  data.textContent = props.value;
  report.append(data);
  element.replaceChildren(report);
};
watch("value", show);
show();
